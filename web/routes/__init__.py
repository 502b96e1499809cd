"""One module per API family, each with a `blueprint`."""
