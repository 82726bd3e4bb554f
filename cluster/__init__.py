"""Wires, launches, supervises, measures and shows the roles; the only folder that knows them all."""
