"""Mutation testing: where a change of the code goes unnoticed by the tests."""
