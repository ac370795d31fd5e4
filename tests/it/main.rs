//! Tests of lockstep with real programs.
