"""Tests against real servers, of the lab that ``FOEDUS_LAB`` names (``make test-cluster``)."""
