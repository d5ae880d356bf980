"""Knowledge washing: remove facts from a trained decoder and measure what is lost with them.

The packages, in the order in which a run walks through them. Each may import those above it:

=================  ====================================================================================
``base``           errors, files and caches, several processes, whether the hub can be reached
``facts``          one fact, the data sets it comes from, general text
``decoders``       a Hugging Face decoder: loading, structure, batches, greedy decoding, saving
``editing``        what editing methods share: keys, second moments, target values, least squares
``tuning``         what gradient methods share: the training loop, its rows, the retain text
``methods``        the washing methods, one file each
``evaluation``     what is measured of a model, and the names of all metrics
``attacks``        ways to get washed facts back, one file each
``lab``            the generated world and the small model that is trained on it
``runs``           one run: configuration, sequence, tracker, command line
``reporting``      tables and pictures of finished runs
=================  ====================================================================================
"""
