"""From a Hugging Face model folder to the files edge runtimes load, one package per format."""
