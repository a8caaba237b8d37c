"""Everyone who connects from outside: today the developer's SDK and command line."""
