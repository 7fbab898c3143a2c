"""Provisioning of a server over SSH, phase by phase: facts are read, steps plan, a connection runs, an engine orders."""
