"""What anybody may do from storage alone, without a driver: status, verification, vacuum."""
