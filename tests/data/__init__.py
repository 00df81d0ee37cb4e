"""Tests of bitnet_ref/data, one file per module.

A package, so that two test files of one name (test_corpus here and in evaluate) can stand in one run.
Read after: bitnet_ref/data. Read next: tests/data/conftest.
"""
