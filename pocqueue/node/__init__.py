"""The small node (8080): takes rounds from the chain, has them searched, signs and sends what is found."""
