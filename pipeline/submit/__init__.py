"""Request files to batches: the service, the scheduler, settling, and the runner that ties them to the ledger."""
