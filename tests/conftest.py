"""What every test may ask for by name; the fixtures live beside what they start."""

pytest_plugins = [
    "tests.support.s3",
    "tests.support.proxy",
    "tests.support.stores",
    "tests.support.material",
    "tests.support.tables_location",
    "tests.support.clips",
]
