"""The owner's page: rendered here, complete without JavaScript; two small modules add what is live."""
