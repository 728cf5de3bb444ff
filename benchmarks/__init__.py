"""What `qqbot_session` costs: one file per question, all run by `python -m benchmarks`."""
