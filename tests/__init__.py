"""The guarantees, each as a test that is named after it."""
