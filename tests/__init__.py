"""Tests of Torpor; the folders mirror core/ and plugins/."""
