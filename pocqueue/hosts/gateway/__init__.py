"""The gateway: the process that machines, owners and admins of GPU hosts speak with."""
