"""What the control plane remembers: tables, their migrations, and the one door to the database."""
