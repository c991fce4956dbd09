"""The tests of attnarray/x/y.py are in tests/x/test_y.py; what several tests share is in tests/support."""
