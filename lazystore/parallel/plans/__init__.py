"""Plans for running a function over data: `optimize_streaming`, `optimize`, `process_in_batches`."""
