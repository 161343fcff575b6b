"""The gate for model files: rules look at each file and answer with findings. Nothing in a file is run."""
