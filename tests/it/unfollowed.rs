//! unfollowed
