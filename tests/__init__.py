"""The tests of attnarray/x/y.py are in tests/x/test_y.py; shared code is in tests/support."""
