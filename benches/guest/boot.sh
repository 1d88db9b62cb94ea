# The shell is there; nothing more happens.
echo "@shell"
read -r _
