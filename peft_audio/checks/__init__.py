"""Check a collection before it costs a training run: broken clips, copies, groups, balance and shortcuts."""
