"""Programs that show keystore at work; the tests run them."""
