"""HTTP: thin routes over what rounds and engines do. Imports neither torch nor vLLM at the top."""
