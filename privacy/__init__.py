"""What may leave a site: privacy mechanisms as values, and what a job promises to protect."""

from privacy.mechanism import AnyMechanism, DpSgd, Mechanism, Protection, SecureAggregation

__all__ = ("AnyMechanism", "DpSgd", "Mechanism", "Protection", "SecureAggregation")
