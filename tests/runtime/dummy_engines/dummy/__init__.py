"""A fake engine for tests of how engines are found and chosen."""
