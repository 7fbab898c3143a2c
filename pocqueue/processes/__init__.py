"""Child processes, the trees that they form, and the lock of a state folder."""
