"""From disk to batches: nouns, NIfTI, layouts, index, DALI graphs, loader, phantom."""
