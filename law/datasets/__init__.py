"""Sources of facts: each reads files into :class:`law.facts.Fact` and splits them."""
