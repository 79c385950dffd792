"""The write path: check records, queue commits, commit in groups; sessions."""
