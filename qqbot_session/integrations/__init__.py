"""One module per library or framework; import the one for yours."""
