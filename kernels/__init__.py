"""One folder per op: a reference that is the contract, backends, and an api that chooses. Imports nothing of ours."""
