"""What `ShardRunner` is made of, so that the runner itself reads in one go."""
