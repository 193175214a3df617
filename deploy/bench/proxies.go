package main

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/template"

	"wormhole/deploy/rig"
)

// What a person who cares writes for nginx: HTTP/2, kept upstream connections,
// nothing spooled to disk, an access log.
var nginxConfig = template.Must(template.New("nginx").Parse(`
daemon off;
{{if .Root}}user root;{{end}}
worker_processes auto;
worker_rlimit_nofile 8192;
pid {{.Dir}}/nginx.pid;
error_log {{.Dir}}/nginx-error.log warn;
events { worker_connections 4096; }
http {
	access_log {{.Dir}}/nginx-access.log combined buffer=64k flush=1s;
	client_body_temp_path {{.Dir}}/nginx-body;
	proxy_temp_path {{.Dir}}/nginx-proxy;
	fastcgi_temp_path {{.Dir}}/nginx-fastcgi;
	uwsgi_temp_path {{.Dir}}/nginx-uwsgi;
	scgi_temp_path {{.Dir}}/nginx-scgi;
	tcp_nodelay on;
	keepalive_timeout 75s;
	keepalive_requests 100000000;
	client_max_body_size 0;
	upstream app { server {{.App}}; keepalive 64; keepalive_requests 100000000; }
	server {
		listen {{.Listen}} ssl http2;
		server_name {{.Host}};
		ssl_certificate {{.Identity}};
		ssl_certificate_key {{.Identity}};
		ssl_protocols TLSv1.3;
		location / {
			proxy_pass http://app;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_set_header Host $host;
			proxy_set_header X-Real-IP $remote_addr;
			proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
			proxy_set_header X-Forwarded-Proto $scheme;
			proxy_request_buffering off;
			proxy_max_temp_file_size 0;
		}
	}
}
`))

var haproxyConfig = template.Must(template.New("haproxy").Parse(`
global
	maxconn 4096
	log stdout format raw local0
	ssl-default-bind-options ssl-min-ver TLSv1.3
defaults
	mode http
	log global
	option httplog
	timeout connect 5s
	timeout client 75s
	timeout server 75s
frontend door
	bind {{.Listen}} ssl crt {{.Identity}} alpn h2,http/1.1
	option forwardfor
	http-request set-header X-Forwarded-Proto https
	default_backend apps
backend apps
	http-reuse always
	server app {{.App}}
`))

// proxyConfig is what the templates know.
type proxyConfig struct {
	Dir, App, Listen, Host, Identity string
	Root                             bool
}

// startProxy writes the configuration and starts the program with it.
func (s *site) startProxy(name, program string, config *template.Template, arguments func(file string) []string) (*target, error) {
	path, err := find(program)
	if err != nil {
		return nil, err
	}
	addr, err := rig.FreePort()
	if err != nil {
		return nil, err
	}
	var text strings.Builder
	values := proxyConfig{
		Dir: s.dir, App: s.appAddr, Listen: addr, Host: host,
		Identity: s.identity.file, Root: os.Geteuid() == 0,
	}
	if err := config.Execute(&text, values); err != nil {
		return nil, err
	}
	file := filepath.Join(s.dir, name+".conf")
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		return nil, err
	}
	process, err := s.start(name, exec.Command(path, arguments(file)...))
	if err != nil {
		return nil, err
	}
	return &target{name: name, addr: addr, roots: s.identity.roots, processes: []*rig.Process{process}}, nil
}

func (s *site) startNginx(context.Context) (*target, error) {
	return s.startProxy("nginx", "nginx", nginxConfig, func(file string) []string {
		return []string{"-p", s.dir, "-e", filepath.Join(s.dir, "nginx-error.log"), "-c", file}
	})
}

func (s *site) startHAProxy(context.Context) (*target, error) {
	return s.startProxy("haproxy", "haproxy", haproxyConfig, func(file string) []string {
		return []string{"-db", "-f", file}
	})
}

// startAdded runs a command given on the command line.
func (s *site) startAdded(_ context.Context, a addition) (*target, error) {
	command := exec.Command("sh", "-c", a.command)
	command.Dir = s.dir
	command.Env = append(os.Environ(), "APP_ADDR="+s.appAddr, "CERT_FILE="+s.identity.file, "HOST="+host)
	process, err := s.start(a.name, command)
	if err != nil {
		return nil, err
	}
	return &target{name: a.name, addr: a.addr, roots: s.identity.roots, processes: []*rig.Process{process}}, nil
}

// find looks where Debian keeps programs for administrators, too.
func find(program string) (string, error) {
	path, err := exec.LookPath(program)
	if err == nil {
		return path, nil
	}
	return exec.LookPath(filepath.Join("/usr/sbin", program))
}

// addition is one --add.
type addition struct {
	name, command, addr string
}

// added is the flag's value.
type added []addition

func (a *added) String() string { return fmt.Sprint(len(*a), " more") }

// Set reads name=command,url. The url's port on loopback is where the target is.
func (a *added) Set(text string) error {
	name, rest, ok := strings.Cut(text, "=")
	comma := strings.LastIndexByte(rest, ',')
	if !ok || name == "" || comma < 1 {
		return fmt.Errorf("%q is not name=command,url", text)
	}
	u, err := url.Parse(rest[comma+1:])
	if err != nil || u.Scheme != "https" || u.Port() == "" {
		return fmt.Errorf("%q is not an https URL with a port", rest[comma+1:])
	}
	*a = append(*a, addition{name: name, command: rest[:comma], addr: net.JoinHostPort("127.0.0.1", u.Port())})
	return nil
}
