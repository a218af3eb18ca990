package tpmslot

// Recode decodes slot data and encodes it again.
func Recode(b []byte) ([]byte, error) {
	s, err := decode(b)
	if err != nil {
		return nil, err
	}
	return s.encode(), nil
}

// SealedExample is slot data of known content.
func SealedExample() []byte {
	s := &sealed{pin: true, pcrs: 1<<7 | 1<<11, public: []byte{1, 2, 3}, private: []byte{4, 5}}
	for i := range s.salt {
		s.salt[i], s.policy[i] = byte(i), byte(0x40+i)
	}
	s.parent[1] = bankSHA256
	s.parent[33] = 0xff
	return s.encode()
}

// AuthOf is the authorization value of a PIN under SealedExample's salt.
func AuthOf(pin string) []byte {
	s, _ := decode(SealedExample())
	return s.auth([]byte(pin))
}
