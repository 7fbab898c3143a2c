"""Everything that is hashed, signed, sent or kept, as bytes."""
