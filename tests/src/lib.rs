//! The cluster harness and what the test areas share.
