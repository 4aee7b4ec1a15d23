"""The molecular data layer: structures, readers, the HDF5 store, graphs and batches."""
