{{- define "foedus.labels" -}}
{{ include "foedus.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "foedus.selector" -}}
app.kubernetes.io/name: foedus
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "foedus.image" -}}
{{- with .Values.image -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- define "foedus.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "foedus.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
{{- end }}

{{- define "foedus.databaseMount" -}}
- {name: database, mountPath: /run/foedus/database, readOnly: true}
{{- end }}

{{- define "foedus.databaseVolume" -}}
- name: database
  secret:
    secretName: {{ .Values.database.existingSecret }}
    items: [{key: {{ .Values.database.key | quote }}, path: url}]
    defaultMode: 0440
{{- end }}

{{- define "foedus.egress" -}}
- ports:
  {{- range .ports }}
  - {protocol: TCP, port: {{ . }}}
  {{- end }}
  {{- with .to }}
  to: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{- define "foedus.refuse" -}}
{{- $v := .Values -}}
{{- if and (gt (int $v.replicas) 1) (or (ne $v.engine "argo") (ne $v.store "s3") (not $v.database.existingSecret)) }}
{{- fail "replicas: more than one needs engine argo, store s3 and database.existingSecret" }}
{{- end }}
{{- if and (eq $v.store "s3") (not (and $v.s3.endpoint $v.s3.existingSecret)) }}
{{- fail "store s3 needs s3.endpoint and s3.existingSecret" }}
{{- end }}
{{- if and (eq $v.identity "keycloak") (not $v.keycloak.serverUrl) }}
{{- fail "identity keycloak needs keycloak.serverUrl" }}
{{- end }}
{{- if and $v.ingress.enabled (not (and $v.ingress.host $v.ingress.tlsSecret)) }}
{{- fail "ingress needs ingress.host and ingress.tlsSecret" }}
{{- end }}
{{- end }}
