"""What knows one library or framework each; import the module of the one you have."""
