"""What every test may ask for by name; the fixtures live beside what they start."""

pytest_plugins = ["tests.s3", "tests.proxy", "tests.stores", "tests.material"]
