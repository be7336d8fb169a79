"""From files to batches: clip table, splits, augmentation, loaders."""
