"""Mutants of the code on which it stands that nothing is lost: does a test fail for each?"""
