"""Do the learned things hold: splits by time, comparisons with what is there already."""
