"""What Errbot expects of a storage, as tests: one promise each, in files by aspect.

Nothing in this folder depends on the database or needs editing. When a test fails, its
message says what a bot would suffer and what the storage should do.
"""
