"""The device's account: joining one, its rings on disk, and the push relay that serves it."""
