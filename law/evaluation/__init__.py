"""What is measured of a model before and after washing."""
