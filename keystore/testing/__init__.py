"""Parts for tests: ours, and those of programs that use keystore."""
