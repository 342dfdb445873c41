"""What a start reports: log events, progress, stage records and metrics."""
