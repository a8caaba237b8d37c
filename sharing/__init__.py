"""What is shared and how it is kept: the content-addressed object store and, later, its proofs."""
