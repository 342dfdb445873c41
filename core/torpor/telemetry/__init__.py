"""What is told of a start: log events, progress, stage records and metrics."""
